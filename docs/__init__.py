"""Pages for readers, and the code that writes their tables (`render`) and draws their pictures (`pictures`)."""
