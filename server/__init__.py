"""What runs at the coordinator; never imports ``client``."""

import common  # noqa: F401 -- first: it keeps Flower from reporting home
