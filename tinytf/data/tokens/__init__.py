"""3. Tokens: token ids on disk, one flat file per split, of corpora of plain text and of documents."""
