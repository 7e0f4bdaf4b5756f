// A constituency parser on the original ELMo. Compare with constituency_parser_transformer_elmo.jsonnet.
local parser = import 'lib/constituency_parser.libsonnet';

// Paths or URLs of the original's options and weights.
local ELMO = 'https://allennlp.s3.amazonaws.com/models/elmo/2x4096_512_2048cnn_2xhighway/'
             + 'elmo_2x4096_512_2048cnn_2xhighway_';

parser(
  token_embedder={
    type: 'elmo_token_embedder',
    options_file: ELMO + 'options.json',
    weight_file: ELMO + 'weights.hdf5',
    do_layer_norm: false,
    dropout: 0.2,
  },
  embedding_dim=1024,
)
