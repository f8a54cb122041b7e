"""What is measured on images; one metric a file."""
