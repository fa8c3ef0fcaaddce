"""`python -m recalign` is `recalign`."""

from recalign.cli import main

raise SystemExit(main())
