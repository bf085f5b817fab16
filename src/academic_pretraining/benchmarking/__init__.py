"""What runs on the accelerators; torch and transformers are imported from here on."""
