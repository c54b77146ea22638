/**
 * A vocabulary as a tree of bytes, so that tokens that begin alike are tried together.
 *
 * @module
 */

import type { Vocabulary } from "../tokenizer/vocabulary.ts";

/** The tree in preorder: a node is a byte after those above it. */
export interface TokenTree {
  /** The byte of a node. */
  readonly bytes: Uint8Array;
  /** How many bytes are above a node. */
  readonly depths: Uint16Array;
  /** The node that follows when what is below this one is left out. */
  readonly skips: Int32Array;
  /** The token that ends at a node, or -1. */
  readonly tokens: Int32Array;
  /** The next token of the same bytes as token `id`, or -1. */
  readonly twins: Int32Array;
  /** The ids of the control tokens by name. */
  readonly controls: ReadonlyMap<string, number>;
}

const trees = new WeakMap<Vocabulary, TokenTree>();

/** The tree of a vocabulary's tokens that are text; made once. */
export function tokenTree(vocabulary: Vocabulary): TokenTree {
  let tree = trees.get(vocabulary);
  if (!tree) trees.set(vocabulary, tree = build(vocabulary));
  return tree;
}

function build(vocabulary: Vocabulary): TokenTree {
  // A byte as a character: strings are compared faster than arrays.
  const controls = new Map<string, number>(), words = new Map<string, number>();
  const twins = new Int32Array(vocabulary.size).fill(-1);
  for (let id = 0; id < vocabulary.size; id++) {
    const name = vocabulary.token(id);
    if (name !== undefined && vocabulary.isSpecial(id)) {
      controls.set(name, id);
      continue;
    }
    const word = String.fromCharCode(...vocabulary.bytes(id));
    twins[id] = words.get(word) ?? -1;
    words.set(word, id);
  }
  words.delete("");
  const bytes: number[] = [], depths: number[] = [], tokens: number[] = [];
  let before = "";
  for (const word of [...words.keys()].sort()) {
    let common = 0;
    while (common < before.length && before.charCodeAt(common) === word.charCodeAt(common)) common++;
    for (let at = common; at < word.length; at++) {
      bytes.push(word.charCodeAt(at));
      depths.push(at);
      tokens.push(-1);
    }
    tokens[tokens.length - 1] = words.get(word)!;
    before = word;
  }
  const skips = new Int32Array(bytes.length).fill(bytes.length), open: number[] = [];
  for (let node = 0; node < bytes.length; node++) {
    while (open.length > 0 && depths[open[open.length - 1]] >= depths[node]) skips[open.pop()!] = node;
    open.push(node);
  }
  return {
    bytes: Uint8Array.from(bytes),
    depths: Uint16Array.from(depths),
    skips,
    tokens: Int32Array.from(tokens),
    twins,
    controls,
  };
}
