"""What runs inside a hospital; never imports ``server``."""
