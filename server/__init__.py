"""What runs at the coordinator; never imports ``client``."""
