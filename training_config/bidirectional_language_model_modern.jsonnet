// The billion-word model with another activation and a learning rate that falls to zero, and as many parameters.
// scripts/benchmark/README.md has what was measured. Stock allennlp-models doesn't open its archives.
local billion = import 'bidirectional_language_model.jsonnet';

// The learning rate falls to zero at the end of training, so that the end has to be known: an epoch is a number of
// batches here. 17 of these are four passes over the billion words on one GPU, eight on two.
local BATCHES_PER_EPOCH = 100000;

billion {
  data_loader+: { batches_per_epoch: BATCHES_PER_EPOCH },
  model+: { contextualizer+: { activation: 'relu_squared' } },
  trainer+: {
    num_epochs: 17,
    // The highest; of the original schedule it is 0.00057.
    optimizer+: { lr: 0.001 },
    learning_rate_scheduler: {
      type: 'warmup_stable_decay',
      warmup: 6000,
      decay: 0.6,
    },
  },
}
