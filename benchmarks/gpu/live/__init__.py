"""Real engines beside each other on one device: started together, measured one at a time, in turns."""
