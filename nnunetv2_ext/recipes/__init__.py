"""Recipes: how a pre-trained network is trained, as typed, validated configuration. The YAML files lie here too."""
