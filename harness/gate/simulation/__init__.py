"""The gate tested on made-up answers with a known truth."""
