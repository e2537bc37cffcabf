"""The other servers, each run by its own environment's interpreter."""
