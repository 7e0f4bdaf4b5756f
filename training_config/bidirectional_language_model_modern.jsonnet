// The billion-word model, trained with Muon and a learning rate that falls to zero. The model is the same, and so are its
// archives. docs/recipe.md has what was measured, of smaller models.
local billion = import 'bidirectional_language_model.jsonnet';

// The learning rate falls to zero at the end of training, so that the end has to be known: an epoch is a number of
// batches here. 17 of these are four passes over the billion words on one GPU, eight on two.
local BATCHES_PER_EPOCH = 100000;

billion {
  data_loader+: { batches_per_epoch: BATCHES_PER_EPOCH },
  trainer+: {
    num_epochs: 17,
    optimizer: {
      // Muon for the matrices of the transformers' linear layers, dense_sparse_adam for all the rest.
      type: 'muon_sparse_adam',
      // The highest. The original schedule's is 0.00057, and Muon likes two to four times Adam's.
      lr: 0.001,
    },
    learning_rate_scheduler: {
      type: 'warmup_stable_decay',
      warmup: 6000,
      decay: 0.6,
    },
  },
}
