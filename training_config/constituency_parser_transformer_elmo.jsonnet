// A constituency parser on Transformer ELMo. Compare with constituency_parser_elmo.jsonnet.
local parser = import 'lib/constituency_parser.libsonnet';

parser(
  token_embedder={
    type: 'bidirectional_lm_token_embedder',
    archive_file: std.extVar('BIDIRECTIONAL_LM_ARCHIVE_PATH'),
    dropout: 0.2,
    bos_eos_tokens: ['<S>', '</S>'],
    remove_bos_eos: true,
    requires_grad: false,
  },
  // Twice the dimension of the language model's word vectors.
  embedding_dim=1024,
)
