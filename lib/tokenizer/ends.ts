/**
 * Tokens that end an answer, known by their names: files often name one end (`<|endoftext|>`) where the chat uses
 * another (`<|im_end|>`).
 * Source: the end-of-generation tokens of https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
 *
 * @module
 */

/** Ends of turns and of texts. */
const ENDS: readonly string[] = [
  "<|im_end|>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|end|>",
  "<|return|>",
  "<|call|>",
  "<|flush|>",
  "<|calls|>",
  "<end_of_turn>",
  "<turn|>",
  "<|tool_response>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "<|endofturn|>",
  "<|eot|>",
  "<|eom|>",
  "<|END_OF_TURN_TOKEN|>",
  "<end_of_utterance>",
  "<EOT>",
  "_<EOT>",
  "[EOT]",
  "[EOS]",
  "<eos>",
  "</s>",
  "<｜end▁of▁sentence｜>",
  "[e~[",
];

/** What code models write where one file or repository ends and another begins. */
const FILE_ENDS: readonly string[] = [
  "<|fim_pad|>",
  "<fim-pad>",
  "<fim_pad>",
  "<|fim_repo|>",
  "<|repo_name|>",
  "<fim-repo>",
  "<reponame>",
  "<|file_sep|>",
];

/** GLM-4 has no end of turn: the next speaker's name is it. */
const GLM_SPEAKERS: readonly string[] = ["<|user|>", "<|observation|>"];

/** The ids of a vocabulary's ends. `added` gives the id of an added token by its name, or undefined. */
export function endIds(added: (name: string) => number | undefined): number[] {
  const has = (...names: string[]): boolean => names.every((name) => added(name) !== undefined);
  const names = [...ENDS, ...FILE_ENDS, ...(has("[gMASK]", "<|observation|>") ? GLM_SPEAKERS : [])];
  // In these formats an answer has several parts, each of which `<|end|>` closes.
  const parts = has("<|return|>", "<|call|>") || has("<|calls|>", "<|flush|>");
  // Where Gemma 4's tokens are, `</s>` is a piece of text.
  const markup = has("<|tool_response>");
  return names
    .filter((name) => !(parts && name === "<|end|>") && !(markup && name === "</s>"))
    .map(added)
    .filter((id) => id !== undefined);
}
