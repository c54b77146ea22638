/** The settings behind a method's name: a letter and a whole number each, `b2g32`. @module */

/** Numbers by letter, from `text` or else from `defaults`. Throws RangeError that names the method and what it takes. */
export function settingsOf<Letter extends string>(
  method: string,
  text: string,
  defaults: Readonly<Record<Letter, number>>,
  allowed: Readonly<Record<Letter, readonly number[]>>,
): Record<Letter, number> {
  const out: Record<string, number> = { ...defaults };
  const takes = Object.entries<readonly number[]>(allowed).map(([letter, values]) => `${letter} ${values.join(" ")}`);
  const refuse = () =>
    new RangeError(`${method}:${text}: settings are ${takes.join("; ")}, as in ${method}:${example}`);
  const example = Object.entries(defaults).map(([letter, value]) => `${letter}${value}`).join("");
  if (!/^([a-z]\d+)*$/.test(text)) throw refuse();
  for (const [, letter, value] of text.matchAll(/([a-z])(\d+)/g)) {
    if (!(allowed[letter as Letter] ?? []).includes(Number(value))) throw refuse();
    out[letter] = Number(value);
  }
  return out;
}
