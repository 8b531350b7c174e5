"""What is made of stored results: statistics, pictures, tables, the page. No model is loaded, no torch imported."""
