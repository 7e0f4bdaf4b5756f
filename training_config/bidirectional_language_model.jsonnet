// Transformer ELMo on the One Billion Word corpus, as in Peters et al. 2018, "Dissecting Contextual Word Embeddings".
// docs/billion-word.md says how to get the data and the vocabulary.
//
// Several GPUs:         -o '{"distributed": {"cuda_devices": [0, 1]}}'
// Without validation:   -o '{"validation_data_path": null}'

local TRAIN_PATH = std.extVar('BIDIRECTIONAL_LM_TRAIN_PATH');
local VOCAB_PATH = std.extVar('BIDIRECTIONAL_LM_VOCAB_PATH');

// The benchmark keeps its held-out files beside the training shards. Text of one's own gets no validation,
// unless an override names some.
local BENCHMARK_TRAIN = 'training-monolingual.tokenized.shuffled';
local BENCHMARK_HELDOUT = 'heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100';
local PARTS = std.split(TRAIN_PATH, BENCHMARK_TRAIN);
local HELDOUT_PATH = if std.length(PARTS) > 1 then PARTS[0] + BENCHMARK_HELDOUT else null;

// Tokens in the batch of one GPU, padding included. The original run had two GPUs.
local MAX_TOKENS = 2000;

{
  dataset_reader: {
    type: 'simple_language_modeling',
    // The benchmark is tokenized already.
    tokenizer: { type: 'just_spaces' },
    token_indexers: {
      // What to predict ...
      tokens: { type: 'single_id' },
      // ... and what to see.
      token_characters: { type: 'elmo_characters' },
    },
    // Of 30 million sentences, this drops a handful; evaluation drops none.
    max_sequence_length: 400,
    start_tokens: ['<S>'],
    end_tokens: ['</S>'],
  },
  train_data_path: TRAIN_PATH,
  validation_data_path: HELDOUT_PATH,
  vocabulary: {
    type: 'from_files',
    directory: VOCAB_PATH,
  },
  data_loader: {
    type: 'language_modeling',
    max_tokens: MAX_TOKENS,
    // The character CNN runs once for each distinct word of a batch.
    distinct_words: true,
  },
  validation_data_loader: {
    type: 'language_modeling',
    max_tokens: MAX_TOKENS,
    distinct_words: true,
    shuffle: false,
    keep_long_sentences: true,
  },
  model: {
    type: 'bidirectional_language_model',
    num_samples: 8192,
    sparse_embeddings: true,
    dropout: 0.1,
    text_field_embedder: {
      token_embedders: {
        tokens: { type: 'empty' },
        token_characters: {
          type: 'character_encoding',
          embedding: {
            // 256 bytes, the marks of words and sentences, and padding.
            num_embeddings: 262,
            embedding_dim: 16,
          },
          encoder: {
            type: 'cnn-highway',
            activation: 'relu',
            embedding_dim: 16,
            filters: [
              [1, 32],
              [2, 32],
              [3, 64],
              [4, 128],
              [5, 256],
              [6, 512],
              [7, 1024],
            ],
            num_highway: 2,
            projection_dim: 512,
            projection_location: 'after_highway',
            do_layer_norm: true,
          },
        },
      },
    },
    contextualizer: {
      type: 'bidirectional_language_model_transformer',
      input_dim: 512,
      hidden_dim: 2048,
      num_layers: 6,
      dropout: 0.1,
      input_dropout: 0.1,
    },
  },
  trainer: {
    type: 'language_modeling',
    num_epochs: 10,
    validation_metric: '-perplexity',
    optimizer: {
      // Leaves the moments of words that were neither drawn nor targets alone, where plain Adam would
      // let them decay.
      type: 'dense_sparse_adam',
    },
    learning_rate_scheduler: {
      type: 'noam',
      model_size: 512,
      warmup_steps: 6000,
    },
    checkpointer: {
      type: 'crash_safe',
      save_every_num_batches: 20000,
    },
    callbacks: [
      // --recover goes on at the batch after the last checkpoint, without reading what came before.
      { type: 'resume_data' },
      {
        type: 'tensorboard',
        should_log_learning_rate: true,
        // It would read all 405 million softmax weights.
        should_log_parameter_statistics: false,
      },
    ],
  },
}
