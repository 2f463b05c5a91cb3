"""Files and folders that hold a Whisper: one module each."""
