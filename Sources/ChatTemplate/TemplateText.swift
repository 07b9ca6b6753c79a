/// Text as Python prints and cuts it. Indexes count code points.

extension Double {
    /// Python's `repr`.
    var pythonText: String {
        if isNaN { return "nan" }
        if isInfinite { return self < 0 ? "-inf" : "inf" }
        let text = description
        // Swift goes on without exponent up to 2^54, Python up to 10^16.
        guard magnitude >= 1e16, !text.utf8.contains(UInt8(ascii: "e")), let dot = text.firstIndex(of: ".") else {
            return text
        }
        let digits = Array((self < 0 ? text[..<dot].dropFirst() : text[..<dot]).utf8)
        var fraction = digits.dropFirst()
        while fraction.last == UInt8(ascii: "0") { fraction.removeLast() }
        let tail = fraction.isEmpty ? "" : "." + String(decoding: fraction, as: UTF8.self)
        return (self < 0 ? "-" : "") + String(Unicode.Scalar(digits[0])) + tail + "e+\(digits.count - 1)"
    }
}

/// Python's `repr` of a string.
func pythonQuoted(_ text: String) -> String {
    let hasSingle = text.utf8.contains(UInt8(ascii: "'"))
    let quote: Unicode.Scalar = hasSingle && !text.utf8.contains(UInt8(ascii: "\"")) ? "\"" : "'"
    var out = String.UnicodeScalarView()
    out.append(quote)
    for scalar in text.unicodeScalars {
        switch scalar {
        case quote, "\\":
            out.append("\\")
            out.append(scalar)
        case "\n": out.append(contentsOf: "\\n".unicodeScalars)
        case "\r": out.append(contentsOf: "\\r".unicodeScalars)
        case "\t": out.append(contentsOf: "\\t".unicodeScalars)
        default:
            if isPrintable(scalar) {
                out.append(scalar)
            } else {
                let (mark, width) = scalar.value < 0x100 ? ("\\x", 2) : scalar.value < 0x10000 ? ("\\u", 4) : ("\\U", 8)
                out.append(contentsOf: (mark + hexadecimal(scalar.value, width: width)).unicodeScalars)
            }
        }
    }
    out.append(quote)
    return String(out)
}

func hexadecimal(_ value: UInt32, width: Int) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
}

private func isPrintable(_ scalar: Unicode.Scalar) -> Bool {
    if scalar.value < 0x7F { return scalar.value >= 0x20 }
    switch scalar.properties.generalCategory {
    case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator, .spaceSeparator:
        return false
    default: return true
    }
}

/// A string's code points, and back.
func scalars(_ text: String) -> [Unicode.Scalar] { Array(text.unicodeScalars) }

func string(_ scalars: some Sequence<Unicode.Scalar>) -> String {
    var view = String.UnicodeScalarView()
    view.append(contentsOf: scalars)
    return String(view)
}

/// Python's `strip` family: the characters to take off, white space where nil.
func stripped(_ text: String, _ characters: String?, start: Bool = true, end: Bool = true) -> String {
    let set = characters.map { Set($0.unicodeScalars) }
    func goes(_ scalar: Unicode.Scalar) -> Bool { set?.contains(scalar) ?? isPythonSpace(scalar) }
    var view = text.unicodeScalars[...]
    while start, let first = view.first, goes(first) { view.removeFirst() }
    while end, let last = view.last, goes(last) { view.removeLast() }
    return String(String.UnicodeScalarView(view))
}

/// Byte offsets at which `part` starts in `text`, without overlap, from the left.
func occurrences(of part: [UInt8], in text: [UInt8], max: Int = .max) -> [Int] {
    guard !part.isEmpty, part.count <= text.count else { return [] }
    var found: [Int] = []
    // Knuth-Morris-Pratt, so that no text takes more than linear time.
    var fallback = [0, 0]
    var length = 0
    for place in part.indices.dropFirst() {
        while length > 0, part[place] != part[length] { length = fallback[length] }
        if part[place] == part[length] { length += 1 }
        fallback.append(length)
    }
    var matched = 0
    for place in text.indices where found.count < max {
        while matched > 0, part[matched] != text[place] { matched = fallback[matched] }
        if part[matched] == text[place] { matched += 1 }
        if matched == part.count {
            found.append(place + 1 - part.count)
            matched = 0
        }
    }
    return found
}

func isPart(_ part: String, of text: String) -> Bool {
    part.utf8.isEmpty || !occurrences(of: Array(part.utf8), in: Array(text.utf8), max: 1).isEmpty
}

func hasPrefix(_ text: String, _ prefix: String) -> Bool { text.utf8.starts(with: prefix.utf8) }

func hasSuffix(_ text: String, _ suffix: String) -> Bool {
    text.utf8.count >= suffix.utf8.count && text.utf8.suffix(suffix.utf8.count).elementsEqual(suffix.utf8)
}

/// First letter upper case, the rest lower case.
func capitalized(_ text: String) -> String {
    var view = text.unicodeScalars[...]
    guard let first = view.popFirst() else { return "" }
    return first.properties.titlecaseMapping + String(String.UnicodeScalarView(view)).lowercased()
}

/// Capitals where a word starts: after anything that is no letter (`str.title`), or only after
/// white space and `-({[<` (the `title` filter).
func titled(_ text: String, afterAnyNonLetter: Bool) -> String {
    var out = ""
    var startsWord = true
    for scalar in text.unicodeScalars {
        out += startsWord ? scalar.properties.titlecaseMapping : scalar.properties.lowercaseMapping
        startsWord =
            afterAnyNonLetter
            ? !scalar.properties.isCased
            : isPythonSpace(scalar) || ["-", "(", "{", "[", "<"].contains(scalar)
    }
    return out
}

/// Python's `split` without a separator: at runs of white space.
func splitAtSpaces(_ text: String, max: Int) -> [String] {
    var parts: [String] = []
    var view = text.unicodeScalars[...]
    while true {
        while let first = view.first, isPythonSpace(first) { view.removeFirst() }
        guard !view.isEmpty else { return parts }
        if parts.count == max { return parts + [string(view)] }
        let end = view.firstIndex(where: isPythonSpace) ?? view.endIndex
        parts.append(string(view[..<end]))
        view = view[end...]
    }
}

/// The same from the right.
func splitAtSpacesFromRight(_ text: String, max: Int) -> [String] {
    string(text.unicodeScalars.reversed()).isEmpty
        ? []
        : splitAtSpaces(string(text.unicodeScalars.reversed()), max: max).reversed().map {
            string($0.unicodeScalars.reversed())
        }
}

/// At each occurrence of a separator, up to `max` times, from the left or the right.
func split(_ text: String, at separator: String, max: Int, fromRight: Bool = false) -> [String] {
    let bytes = Array(text.utf8)
    let part = Array(separator.utf8)
    var places: [Int]
    if fromRight {
        places = occurrences(of: part.reversed(), in: bytes.reversed(), max: max)
            .map { bytes.count - $0 - part.count }.reversed()
    } else {
        places = occurrences(of: part, in: bytes, max: max)
    }
    places.append(bytes.count)
    var parts: [String] = []
    var start = 0
    for place in places {
        parts.append(String(decoding: bytes[start..<place], as: UTF8.self))
        start = place + part.count
    }
    return parts
}

/// Python's `splitlines`.
func lines(_ text: String, keepEnds: Bool = false) -> [String] {
    var lines: [String] = []
    var line = String.UnicodeScalarView()
    var view = text.unicodeScalars[...]
    while let scalar = view.popFirst() {
        let isEnd: Bool
        switch scalar.value {
        case 0x0A...0x0D, 0x1C...0x1E, 0x85, 0x2028, 0x2029: isEnd = true
        default: isEnd = false
        }
        guard isEnd else {
            line.append(scalar)
            continue
        }
        if keepEnds { line.append(scalar) }
        if scalar == "\r", view.first == "\n", let feed = view.popFirst(), keepEnds { line.append(feed) }
        lines.append(String(line))
        line = String.UnicodeScalarView()
    }
    if !line.isEmpty { lines.append(String(line)) }
    return lines
}

/// Python's `int(text)`.
func pythonInteger(_ text: String, radix: Int = 10) -> Int64? {
    var digits = stripped(text, nil)
    let prefix = digits.utf8.prefix(3).map { $0 | 0x20 }
    if radix != 10, let mark = [16: UInt8(ascii: "x"), 8: UInt8(ascii: "o"), 2: UInt8(ascii: "b")][radix],
        prefix.count == 3, prefix[0] == 0x30, prefix[1] == mark
    {
        digits = String(digits.dropFirst(2))
    }
    guard !digits.hasPrefix("_"), !digits.hasSuffix("_"), !isPart("__", of: digits) else { return nil }
    return Int64(string(digits.unicodeScalars.filter { $0 != "_" }), radix: radix)
}

/// Python's `float(text)`.
func pythonFloat(_ text: String) -> Double? {
    let digits = stripped(text, nil).lowercased()
    let unsigned = digits.hasPrefix("-") || digits.hasPrefix("+") ? String(digits.dropFirst()) : digits
    if ["inf", "infinity"].contains(unsigned) { return digits.hasPrefix("-") ? -.infinity : .infinity }
    if unsigned == "nan" { return .nan }
    guard !unsigned.contains("x"), !unsigned.contains("n") else { return nil }
    return Double(string(digits.unicodeScalars.filter { $0 != "_" }))
}

extension TemplateDate {
    private static let months = [
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ]
    private static let weekdays = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

    /// Days before the month, and whether the year has a 29 February.
    private var dayOfYear: Int {
        let lengths = [31, isLeapYear ? 29 : 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        return lengths.prefix(max(0, min(month, 12) - 1)).reduce(day, +)
    }

    private var isLeapYear: Bool { year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) }

    /// 0 is Monday. The Gregorian calendar repeats after 400 years, which are whole weeks.
    private var weekday: Int {
        let before = ((year - 1) % 400 + 400) % 400
        return (before * 365 + before / 4 - before / 100 + before / 400 + dayOfYear - 1) % 7
    }

    /// As `strftime` of the C locale for the letters that templates use; nil for one not known here.
    func formatted(_ format: String) -> String? {
        var out = ""
        var letters = format.unicodeScalars[...]
        while let scalar = letters.popFirst() {
            guard scalar == "%" else {
                out.unicodeScalars.append(scalar)
                continue
            }
            var unpadded = false
            if letters.first == "-" {
                unpadded = true
                letters.removeFirst()
            }
            guard let letter = letters.popFirst(), let field = field(letter, unpadded: unpadded) else { return nil }
            out += field
        }
        return out
    }

    private func field(_ letter: Unicode.Scalar, unpadded: Bool) -> String? {
        func padded(_ value: Int, _ width: Int = 2, with filler: String = "0") -> String {
            let digits = String(value)
            return unpadded ? digits : String(repeating: filler, count: max(0, width - digits.utf8.count)) + digits
        }
        let hour12 = hour % 12 == 0 ? 12 : hour % 12
        let monthName = (1...12).contains(month) ? Self.months[month - 1] : ""
        let dayName = Self.weekdays[((weekday % 7) + 7) % 7]
        switch letter {
        case "Y": return String(year)
        case "y": return padded(year % 100)
        case "m": return padded(month)
        case "d": return padded(day)
        case "e": return padded(day, with: " ")
        case "H": return padded(hour)
        case "I": return padded(hour12)
        case "M": return padded(minute)
        case "S": return padded(second)
        case "p": return hour < 12 ? "AM" : "PM"
        case "j": return padded(dayOfYear, 3)
        case "B": return monthName
        case "b", "h": return String(monthName.prefix(3))
        case "A": return dayName
        case "a": return String(dayName.prefix(3))
        case "F": return "\(year)-\(padded(month))-\(padded(day))"
        case "T": return "\(padded(hour)):\(padded(minute)):\(padded(second))"
        case "D": return "\(padded(month))/\(padded(day))/\(padded(year % 100))"
        case "R": return "\(padded(hour)):\(padded(minute))"
        case "u": return String(weekday + 1)
        case "w": return String((weekday + 1) % 7)
        case "n": return "\n"
        case "t": return "\t"
        case "%": return "%"
        default: return nil
        }
    }
}
