"""UMS: records of findings, label spaces, and the verifier."""
