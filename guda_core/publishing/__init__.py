"""What is made of a run for the Hugging Face Hub: a workspace without training pictures (`published`) and its model
card (`hub_card`)."""
