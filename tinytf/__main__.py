"""`python -m tinytf`."""

import sys

from tinytf.cli.main import main

sys.exit(main())
