"""What a model looked at: heat maps, how far they can be believed, pictures. All of it is made and stays at a site."""
