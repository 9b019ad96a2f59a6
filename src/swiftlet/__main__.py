"""`python -m swiftlet` is `swift`."""

from swiftlet.cli import main

raise SystemExit(main())
