"""Lightning's loggers, resumed without a gap or a duplicate step."""
