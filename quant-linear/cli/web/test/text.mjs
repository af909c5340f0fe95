/** A name as a page writes it: with the numbers of what would not be seen. */
export const printable = (name) =>
  [...name].map((c) => (/^[\p{Cc}\p{Cf}\u2028\u2029]$/u.test(c) ? `\\u{${c.codePointAt(0).toString(16)}}` : c)).join("");
