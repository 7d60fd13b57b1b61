"""Methods on gradient features of training pictures: TRAK, D-TRAK and DAS."""
