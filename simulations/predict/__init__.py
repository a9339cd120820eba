"""A finished model on new images: a worklist in the order of urgency. Research software, not a medical device."""
