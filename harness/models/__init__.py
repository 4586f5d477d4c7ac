"""The model a run starts from: where it is, what it is made of, and the device it runs on."""
