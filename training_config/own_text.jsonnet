// A language model of your own text, of a million to a hundred million words: choose the size with --size.
// docs/own-text.md goes from a folder of text to vectors.
local billion = import 'bidirectional_language_model.jsonnet';

// By the number of words in the training text, about: '1M', '10M' or '100M'.
local SIZE = '1M';

local NUMBERS = {
  // dim: numbers in a word's vector; its vectors in context have twice as many.
  // samples: words that the right one is told from in a step of training; all, where the vocabulary has no more.
  '1M': { dim: 256, layers: 2, dropout: 0.2, samples: 1024, epochs: 10, batch: 1000, warmup: 500 },
  '10M': { dim: 512, layers: 3, dropout: 0.1, samples: 4096, epochs: 10, batch: 2000, warmup: 2000 },
  '100M': { dim: 512, layers: 6, dropout: 0.1, samples: 8192, epochs: 5, batch: 2000, warmup: 6000 },
}[SIZE];

billion {
  // Chooses the best epoch. Some thousand sentences will do, none of which is trained on.
  validation_data_path: std.extVar('BIDIRECTIONAL_LM_HELDOUT_PATH'),
  data_loader+: { max_tokens: NUMBERS.batch },
  model+: {
    num_samples: NUMBERS.samples,
    dropout: NUMBERS.dropout,
    text_field_embedder+: {
      token_embedders+: {
        token_characters+: {
          encoder+: {
            // Bytes, of which a letter has one to four.
            filters: [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 256]],
            projection_dim: NUMBERS.dim,
          },
        },
      },
    },
    contextualizer+: {
      input_dim: NUMBERS.dim,
      hidden_dim: 4 * NUMBERS.dim,
      num_layers: NUMBERS.layers,
      dropout: NUMBERS.dropout,
      input_dropout: NUMBERS.dropout,
    },
  },
  trainer+: {
    num_epochs: NUMBERS.epochs,
    // Stops when two epochs in a row have made the held-out text no less surprising.
    patience: 2,
    learning_rate_scheduler+: {
      model_size: NUMBERS.dim,
      warmup_steps: NUMBERS.warmup,
    },
    checkpointer+: { save_every_num_batches: 2000 },
  },
}
