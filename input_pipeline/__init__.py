"""Host-side input: sources, text and image transforms, the Grain loader, data preparation."""
