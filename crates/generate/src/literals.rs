//! The values that everything is compared with and written.

use crate::Dice;

/// Text in many scripts, right to left, beyond the basic plane, composed and decomposed; numbers as text, text that
/// collations see as equal, and text with SQL in it.
pub(crate) const TEXT: &[&str] = &[
    "''",
    "'a'",
    "'A'",
    "'b'",
    "'B'",
    "'a '",
    "'é'",
    "'É'",
    "'e\u{301}'",
    "'ß'",
    "'Ω'",
    "'ключ'",
    "'שלום'",
    "'مرحبا'",
    "'नमस्ते'",
    "'ไทย'",
    "'한국어'",
    "'日本'",
    "'🦀'",
    "'👩\u{200d}🚀'",
    "'5'",
    "'3'",
    "'9'",
    "'10'",
    "'z''z'",
    "'Ω;'",
    "'/*'",
];

/// What conditions compare with.
pub(crate) const ANY: &[&str] = &[
    "NULL",
    "0",
    "1",
    "2",
    "3",
    "4",
    "5",
    "-1",
    "2.5",
    "3.0",
    "'a'",
    "'A'",
    "'b'",
    "'5'",
    "'3'",
    "''",
    "'Ω'",
    "'日本'",
    "'ключ'",
    "'مرحبا'",
    "'🦀'",
    "'a '",
    "x'00'",
    "1e300",
    "9e999",
    "-9e999",
    "-0.0",
    "9223372036854775807",
    "-9223372036854775808",
];

pub(crate) fn literal(dice: &mut Dice) -> &'static str {
    dice.pick(ANY)
}

/// Text, sometimes NULL.
pub(crate) fn text(dice: &mut Dice) -> String {
    if dice.roll(7) == 0 { "NULL".to_owned() } else { dice.pick(TEXT).to_owned() }
}
