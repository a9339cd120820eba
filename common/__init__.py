"""What hospitals and the coordinator share; imports none of the other rooms."""
