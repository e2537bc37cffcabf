"""The shift monitor on real shifts of MovieLens-100K, beside other detectors."""
