"""What runs inside a hospital; never imports ``server``."""

import common  # noqa: F401 -- first: it keeps Flower from reporting home
