/**
 * The tokenizer of a model, wherever the model keeps it.
 *
 * @module
 */

import { Tokenizer } from "../tokenizer/tokenizer.ts";
import { checkModelPath, isGguf } from "../weights/config.ts";
import { Gguf } from "../weights/gguf.ts";
import { ggufTokenizer } from "../weights/gguf_tokenizer.ts";

/** Opens the tokenizer of a model folder or a GGUF file. Throws TokenizerError or WeightsError naming file and cause. */
export function openTokenizer(model: string): Tokenizer {
  checkModelPath(model);
  if (!isGguf(model)) return Tokenizer.open(model);
  using file = Gguf.open(model);
  return Tokenizer.from({ path: model, ...ggufTokenizer(file) });
}
