// The billion-word model in small, which learns something from 60,000 words in two minutes on two cores.
// The same parts in the same places, and the newer recipe of bidirectional_language_model_modern.jsonnet, which does better
// here; scripts/quickstart.sh trains it.
local billion = import 'bidirectional_language_model.jsonnet';

local DIM = 128;

billion {
  validation_data_path: std.extVar('BIDIRECTIONAL_LM_HELDOUT_PATH'),
  data_loader+: { max_tokens: 1000 },
  model+: {
    num_samples: 512,
    text_field_embedder+: {
      token_embedders+: {
        token_characters+: {
          encoder+: {
            filters: [[1, 16], [2, 16], [3, 32], [4, 64], [5, 64]],
            num_highway: 1,
            projection_dim: DIM,
          },
        },
      },
    },
    contextualizer+: {
      input_dim: DIM,
      hidden_dim: 4 * DIM,
      num_layers: 2,
    },
  },
  trainer+: {
    num_epochs: 6,
    optimizer: {
      type: 'muon_sparse_adam',
      lr: 0.008,
    },
    // With shares of all steps: another number of epochs needs no other numbers.
    learning_rate_scheduler: {
      type: 'warmup_stable_decay',
      warmup: 0.1,
      decay: 0.6,
    },
  },
}
