"""Whether live traffic is still like the data that the model was fitted on."""
