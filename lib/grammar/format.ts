/**
 * The formats of strings that are kept, as regular expressions. Each lets through only what is valid by its specification; where
 * that knows more, it is said.
 *
 * @module
 */

const day = "(?:(?:\\d\\d(?:[2468][048]|[13579][26]|0[48])|(?:[02468][048]|[13579][26])00)-02-29|" +
  "\\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|1\\d|2[0-8])))";
// Leap seconds are left out.
const time = "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)";
const octet = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const ipv4 = `${octet}(?:\\.${octet}){3}`;
const label = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,20}[A-Za-z0-9])?";
const atom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+";
const group = "[0-9A-Fa-f]{1,4}";
// RFC 4291: `::` stands for one group of zeros or more.
const ipv6 = `(?:(?:${group}:){7}${group}|(?:${group}:){1,7}:|` +
  Array.from({ length: 6 }, (_, i) => `(?:${group}:){1,${6 - i}}(?::${group}){1,${i + 1}}`).join("|") +
  `|:(?::${group}){1,7}|::)`;
const unreserved = "A-Za-z0-9._~\\-";
const escaped = "%[0-9A-Fa-f]{2}";
const segment = `(?:[${unreserved}!$&'()*+,;=:@]|${escaped})*`;
const query = `(?:[${unreserved}!$&'()*+,;=:@/?]|${escaped})*`;
const authority = `(?:(?:[${unreserved}!$&'()*+,;=:]|${escaped})*@)?(?:[${unreserved}]+(?::\\d{1,5})?)`;
const uri =
  `[A-Za-z][A-Za-z0-9+.-]*:(?://${authority}(?:/${segment})*|/?(?:(?:[${unreserved}!$&'()*+,;=:@]|${escaped})+(?:/${segment})*))` +
  `(?:\\?${query})?(?:#${query})?`;
const relative =
  `(?:/(?:[${unreserved}!$&'()*+,;=:@]|${escaped})+|(?:[${unreserved}!$&'()*+,;=@]|${escaped})+)(?:/${segment})*` +
  `(?:\\?${query})?(?:#${query})?`;
const hex = "[0-9A-Fa-f]";
const pointer = "(?:/(?:[^/~]|~[01])*)*";

/** Characters at most, by name of a format. RFC 1035, RFC 5321. */
export const LONGEST: ReadonlyMap<string, number> = new Map([
  ["hostname", 253],
  ["idn-hostname", 253],
  ["email", 254],
  ["idn-email", 254],
]);

/** By name of a format: an expression that the whole string matches. Parts of host names have 22 characters at most. */
export const FORMATS: ReadonlyMap<string, string> = new Map(
  Object.entries({
    "date-time": `${day}T${time}`,
    "date": day,
    "time": time,
    "duration": "P(?:\\d+W|\\d+Y(?:\\d+M(?:\\d+D)?)?(?:T(?:\\d+H(?:\\d+M(?:\\d+S)?)?|\\d+M(?:\\d+S)?|\\d+S))?|" +
      "\\d+M(?:\\d+D)?(?:T(?:\\d+H(?:\\d+M(?:\\d+S)?)?|\\d+M(?:\\d+S)?|\\d+S))?|" +
      "\\d+D(?:T(?:\\d+H(?:\\d+M(?:\\d+S)?)?|\\d+M(?:\\d+S)?|\\d+S))?|" +
      "T(?:\\d+H(?:\\d+M(?:\\d+S)?)?|\\d+M(?:\\d+S)?|\\d+S))",
    "email": `${atom}(?:\\.${atom})*@${label}(?:\\.${label})+`,
    "idn-email": `${atom}(?:\\.${atom})*@${label}(?:\\.${label})+`,
    "hostname": `${label}(?:\\.${label})*`,
    "idn-hostname": `${label}(?:\\.${label})*`,
    "ipv4": ipv4,
    "ipv6": ipv6,
    "uuid": `${hex}{8}-${hex}{4}-${hex}{4}-${hex}{4}-${hex}{12}`,
    "uri": uri,
    "iri": uri,
    // Not of the specification, but known to validators: an address on the web.
    "url": `https?://(?:${label}\\.){1,3}[a-z]{2,6}(?::\\d{2,5})?(?:/${segment})*(?:\\?${query})?(?:#${query})?`,
    "uri-reference": `(?:${uri}|${relative})`,
    "iri-reference": `(?:${uri}|${relative})`,
    "uri-template": `(?:[${unreserved}:/?#@!$&()*+,;=]|${escaped}|\\{[A-Za-z0-9_]+(?:,[A-Za-z0-9_]+)*\\})*`,
    "json-pointer": pointer,
    "relative-json-pointer": `(?:0|[1-9]\\d*)(?:#|${pointer})`,
    // Without anything that has a meaning of its own.
    "regex": "[A-Za-z0-9 _,:;@/=<>!&%'\"~`-]*",
  }).map(([name, source]) => [name, `^(?:${source})$`]),
);
