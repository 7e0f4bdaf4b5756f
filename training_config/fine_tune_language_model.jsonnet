// A trained Transformer ELMo goes on with other text: one million to ten million words of it, say.
//
//   BIDIRECTIONAL_LM_ARCHIVE_PATH   a model.tar.gz of any age, a model folder, or the folder of a training run
//   BIDIRECTIONAL_LM_TRAIN_PATH     the new text, one sentence a line
//
// Text held out, by which training stops early:   -o '{"validation_data_path": "heldout.txt"}'
// The archive's words beside the new ones:        -o '{"vocabulary.words": "extend"}'
// The archive's words, for more of its own text:  -o '{"vocabulary.words": "keep"}'
// Only what is new to learn:                      -o '{"trainer.no_grad": ["_text_field_embedder", "_contextualizer"]}'
//
// Learning rates of their own, falling layer by layer as in ULMFiT (Howard and Ruder 2018), want a schedule that keeps
// their proportions, which "noam" doesn't. For six layers, in a config that imports this one, with as many steps as
// ten epochs of a million words have (a step has 2,000 of them, or fewer):
//
//   trainer+: {
//     optimizer+: {
//       lr: 5e-4,
//       parameter_groups: [
//         [['_transformer\\.layers\\.%d\\.' % n], { lr: 5e-4 / std.pow(1.5, 6 - n) }]
//         for n in std.range(0, 5)
//       ] + [[['_text_field_embedder'], { lr: 5e-4 / std.pow(1.5, 7) }]],
//     },
//     learning_rate_scheduler: { type: 'warmup_stable_decay', num_steps: 6000, warmup: 200, decay: 0.9 },
//   }
local billion = import 'bidirectional_language_model.jsonnet';

local ARCHIVE_PATH = std.extVar('BIDIRECTIONAL_LM_ARCHIVE_PATH');
local TRAIN_PATH = std.extVar('BIDIRECTIONAL_LM_TRAIN_PATH');

billion {
  // How the published models read. Training tells if the archive's was another way.
  train_data_path: TRAIN_PATH,
  validation_data_path: null,
  vocabulary: {
    type: 'from_pretrained_lm',
    archive_file: ARCHIVE_PATH,
    data_path: TRAIN_PATH,
    words: 'replace',
    min_count: 3,
  },
  model: {
    type: 'from_pretrained_lm',
    archive_file: ARCHIVE_PATH,
    data_path: TRAIN_PATH,
    // What isn't named here is as the archive has it.
    dropout: 0.1,
    contextualizer: { dropout: 0.1 },
  },
  trainer+: {
    num_epochs: 10,
    // Epochs without a better perplexity on the text held out.
    patience: 2,
    learning_rate_scheduler: {
      type: 'noam',
      model_size: 512,
      warmup_steps: 200,
      // A peak of 0.0006, as that of the billion-word run. Smaller models want more: one of 64 dimensions did best
      // with 0.005 to 0.01, for which model_size is 64 and factor 0.6 to 1.
      factor: 0.2,
    },
    checkpointer+: { save_every_num_batches: 2000 },
  },
}
