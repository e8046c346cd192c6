"""What a finding, a state, a record and a label space is, and what makes a record wrong."""
