// The constituency parser of Stern et al. 2017 with Joshi et al. 2018's scoring of all spans, given the
// token embedder that the words go through and its dimension.
//
// Its model and its reader are those of allennlp-models. The README says how to install it.
function(token_embedder, embedding_dim) {
  local POS_DIM = 50,
  local HIDDEN = 250,

  dataset_reader: {
    type: 'ptb_trees',
    use_pos_tags: true,
    token_indexers: { elmo: { type: 'elmo_characters' } },
  },
  // One tree after the other, in the Penn Treebank's bracketed format.
  train_data_path: std.extVar('PTB_TRAIN_PATH'),
  validation_data_path: std.extVar('PTB_VALIDATION_PATH'),
  model: {
    type: 'constituency_parser',
    text_field_embedder: { token_embedders: { elmo: token_embedder } },
    pos_tag_embedding: {
      embedding_dim: POS_DIM,
      vocab_namespace: 'pos',
    },
    encoder: {
      type: 'lstm',
      input_size: embedding_dim + POS_DIM,
      hidden_size: HIDDEN,
      num_layers: 2,
      bidirectional: true,
      dropout: 0.2,
    },
    span_extractor: {
      type: 'bidirectional_endpoint',
      input_dim: 2 * HIDDEN,
    },
    feedforward: {
      input_dim: 2 * HIDDEN,
      num_layers: 1,
      hidden_dims: HIDDEN,
      activations: 'relu',
      dropout: 0.1,
    },
  },
  data_loader: {
    batch_sampler: {
      type: 'bucket',
      sorting_keys: ['tokens'],
      batch_size: 32,
    },
  },
  trainer: {
    num_epochs: 150,
    patience: 20,
    grad_norm: 5.0,
    // AllenNLP compiles the EVALB program for it, with make and a C compiler, when it is first used. Without:
    // -o '{"model.evalb_directory_path": null, "trainer.validation_metric": "+tag_accuracy"}'
    validation_metric: '+evalb_f1_measure',
    optimizer: {
      type: 'adadelta',
      lr: 1.0,
      rho: 0.95,
    },
    learning_rate_scheduler: {
      type: 'multi_step',
      milestones: [40, 50, 60, 70, 80],
      gamma: 0.8,
    },
  },
}
