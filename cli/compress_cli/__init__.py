"""The command line of Compress; it calls the public API and prints what comes back."""
