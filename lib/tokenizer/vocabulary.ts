/**
 * The exact bytes behind each token id, as the tokenizer's decoder defines them.
 *
 * @module
 */

/** A tokenizer file is missing, malformed or not supported, or a text cannot be encoded. The message names the file and the cause. */
export class TokenizerError extends Error {
  /** Always "TokenizerError". */
  override readonly name: string = "TokenizerError";
}

/** A token that was added to the vocabulary by name. */
export interface AddedToken {
  /** Its id. */
  readonly id: number;
  /** Its text. */
  readonly content: string;
  /** Whether it is a control token, not text. */
  readonly special: boolean;
  /** Whether it stands for a whole word only, not for a part of one. */
  readonly single_word?: boolean;
}

/** The parts of `tokenizer.json` that say how ids become text. */
export interface DecoderDescription {
  /** Name of the decoder: "ByteLevel", "Metaspace", "Sequence", ... */
  readonly type: string;
  /** The steps of a Sequence. */
  readonly decoders?: readonly DecoderDescription[];
  /** What Replace looks for. */
  readonly pattern?: { readonly String?: string };
  /** What Replace puts there, or what Strip takes away. */
  readonly content?: string;
  /** How many times Strip takes `content` away at the start. */
  readonly start?: number;
  /** How many times Strip takes `content` away at the end. */
  readonly stop?: number;
  /** What Metaspace turns into a space. */
  readonly replacement?: string;
  /** Whether, and where, Metaspace took a space as given: "always", "first" or "never". */
  readonly prepend_scheme?: string;
}

/**
 * GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the other 68 bytes, in order, for U+0100 onwards.
 * Source: `bytes_to_unicode` of https://github.com/openai/gpt-2
 */
const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = (() => {
  const map = new Map<string, number>();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable = byte >= 0x21 && byte <= 0x7e || byte >= 0xa1 && byte <= 0xac || byte >= 0xae;
    map.set(String.fromCharCode(printable ? byte : next++), byte);
  }
  return map;
})();

/** Ids, tokens and their bytes. */
export class Vocabulary {
  /** One more than the largest id. Not every id below needs to have a token. */
  readonly size: number;
  /** The decoder takes this many spaces away at the start of a text. */
  readonly leadingSpaces: number;
  readonly #tokens: readonly (string | undefined)[];
  readonly #added: ReadonlyMap<number, AddedToken>;
  readonly #toBytes: (token: string, added: boolean) => Uint8Array;
  readonly #bytes: (Uint8Array | undefined)[] = [];

  /** Throws {@link TokenizerError} where the decoder is not one of those that models of the Llama family have. */
  constructor(
    vocabulary: Readonly<Record<string, number>>,
    added: readonly AddedToken[],
    decoder: DecoderDescription | null,
  ) {
    const tokens: string[] = [];
    for (const [token, id] of Object.entries(vocabulary)) tokens[id] = token;
    for (const { id, content } of added) tokens[id] = content;
    this.size = tokens.length;
    this.#tokens = tokens;
    this.#added = new Map(added.map((token) => [token.id, token]));
    ({ toBytes: this.#toBytes, leadingSpaces: this.leadingSpaces } = readDecoder(decoder));
  }

  /** The token as the vocabulary spells it, or undefined where the id has none. */
  token(id: number): string | undefined {
    return this.#tokens[id];
  }

  /** Whether the id was added to the vocabulary by name, as control token or text. */
  isAdded(id: number): boolean {
    return this.#added.has(id);
  }

  /** Whether the id is a control token, not text. */
  isSpecial(id: number): boolean {
    return this.#added.get(id)?.special ?? false;
  }

  /**
   * The token's bytes: they may begin or end inside a UTF-8 character. Empty for an id without a token (a model's
   * embedding may have more rows than the vocabulary). Throws {@link TokenizerError} where `id` is no whole number >= 0.
   */
  bytes(id: number): Uint8Array {
    const known = this.#bytes[id];
    if (known) return known;
    if (!Number.isInteger(id) || id < 0) throw new TokenizerError(`${id} is not a token id`);
    const token = this.#tokens[id];
    if (token === undefined) return new Uint8Array(0);
    return this.#bytes[id] = this.#toBytes(token, this.#added.has(id));
  }
}

/** How a decoder turns a token into bytes. */
interface ByteRule {
  readonly toBytes: (token: string, added: boolean) => Uint8Array;
  readonly leadingSpaces: number;
}

function readDecoder(decoder: DecoderDescription | null): ByteRule {
  const steps = decoder?.type === "Sequence" ? decoder.decoders ?? [] : decoder ? [decoder] : [];
  if (steps.length === 1 && steps[0].type === "ByteLevel") return { toBytes: byteLevelBytes, leadingSpaces: 0 };

  // SentencePiece: a character stands for the space, `<0x0A>` for a byte, and a space is taken away at the start.
  const spaces: string[] = [];
  let byteFallback = false;
  let leadingSpaces = 0;
  for (const step of steps) {
    if (step.type === "Replace" && step.pattern?.String !== undefined && step.content === " ") {
      spaces.push(step.pattern.String);
    } else if (step.type === "Metaspace") {
      spaces.push(step.replacement ?? "▁");
      if (step.prepend_scheme !== "never") leadingSpaces += 1;
    } else if (step.type === "ByteFallback") {
      byteFallback = true;
    } else if (step.type === "Strip" && step.content === " " && !step.stop) {
      leadingSpaces += step.start ?? 0;
    } else if (step.type !== "Fuse") {
      return unsupported(decoder);
    }
  }
  if (spaces.length === 0) return unsupported(decoder);
  const toBytes = (token: string): Uint8Array => {
    if (byteFallback && /^<0x[0-9A-Fa-f]{2}>$/.test(token)) return Uint8Array.of(parseInt(token.slice(3, 5), 16));
    return new TextEncoder().encode(spaces.reduce((text, space) => text.replaceAll(space, " "), token));
  };
  return { toBytes, leadingSpaces };
}

function unsupported(decoder: DecoderDescription | null): never {
  throw new TokenizerError(
    `the decoder ${JSON.stringify(decoder)?.slice(0, 200)} is not supported; supported: ByteLevel, Metaspace, ` +
      "and a Sequence of Replace (by a space), ByteFallback, Fuse and Strip (at the start)",
  );
}

/** An added token, and one with a character outside the alphabet, stands for its own UTF-8 bytes. */
function byteLevelBytes(token: string, added: boolean): Uint8Array {
  if (added) return new TextEncoder().encode(token);
  const bytes: number[] = [];
  for (const character of token) {
    const byte = BYTE_OF_CHARACTER.get(character);
    if (byte === undefined) return new TextEncoder().encode(token);
    bytes.push(byte);
  }
  return Uint8Array.from(bytes);
}
