"""Where arrays live. Policy is one table (rules.py); what a mesh cannot meet is refused by lm/legal.py."""
