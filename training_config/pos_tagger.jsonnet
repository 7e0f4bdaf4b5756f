// A part-of-speech tagger, or any other tagger of words, on Transformer ELMo.
//
// Data: one sentence a line, as WORD###TAG WORD###TAG ...
// For a language model of other dimensions: -o '{"model.encoder.input_size": 256}', twice the dimension of
// its word vectors.

{
  dataset_reader: {
    type: 'sequence_tagging',
    token_indexers: { elmo: { type: 'elmo_characters' } },
  },
  train_data_path: std.extVar('TAGGER_TRAIN_PATH'),
  validation_data_path: std.extVar('TAGGER_VALIDATION_PATH'),
  model: {
    type: 'simple_tagger',
    text_field_embedder: {
      token_embedders: {
        elmo: {
          type: 'bidirectional_lm_token_embedder',
          archive_file: std.extVar('BIDIRECTIONAL_LM_ARCHIVE_PATH'),
          dropout: 0.2,
          bos_eos_tokens: ['<S>', '</S>'],
          remove_bos_eos: true,
          requires_grad: false,
        },
      },
    },
    encoder: {
      type: 'lstm',
      input_size: 1024,
      hidden_size: 200,
      num_layers: 1,
      bidirectional: true,
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
    type: 'language_modeling',
    num_epochs: 20,
    patience: 3,
    grad_norm: 5.0,
    validation_metric: '+accuracy',
    optimizer: {
      type: 'adam',
      lr: 0.001,
    },
  },
}
