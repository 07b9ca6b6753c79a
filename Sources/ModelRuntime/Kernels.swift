import CKernels

/// An instruction set with a table of kernels.
public enum KernelVariant: String, Hashable, Sendable, CaseIterable {
    case scalar
    case avx2
    case avx512

    /// Whether this processor (and this build) runs the table.
    public var isSupported: Bool {
        switch self {
        case .scalar: true
        case .avx2: tk_kernels_avx2() != nil && tk_cpu_has_avx2() != 0
        case .avx512: tk_kernels_avx512() != nil && tk_cpu_has_avx512() != 0
        }
    }

    /// The widest table that this processor runs.
    public static var best: KernelVariant {
        avx512.isSupported ? .avx512 : avx2.isSupported ? .avx2 : .scalar
    }
}

/// A table of kernels, passed explicitly to whatever computes.
///
/// Unchecked because of the pointer: it leads to a constant of the program.
public struct Kernels: @unchecked Sendable {
    public let variant: KernelVariant
    let table: UnsafePointer<tk_kernels>
    /// Products with packed matrices: the widest instructions within the variant that the processor has.
    let packed: UnsafePointer<tk_packed_kernels>
    /// Whether `packed` multiplies bf16 weights; elsewhere they stay in rows and multiply as f32.
    let multipliesBF16: Bool

    /// The plain table, which every machine runs.
    public static let scalar = Kernels(variant: .scalar, table: tk_kernels_scalar())

    private init(variant: KernelVariant, table: UnsafePointer<tk_kernels>) {
        self.variant = variant
        self.table = table
        (packed, multipliesBF16) = Self.packed(variant)
    }

    private static func packed(_ variant: KernelVariant) -> (UnsafePointer<tk_packed_kernels>, Bool) {
        switch variant {
        case .scalar:
            // 64-bit Arm has no variant of its own: plain kernels, and packed products by its dot product.
            if tk_cpu_has_neon_dot() != 0, let table = tk_packed_neon() { return (table, false) }
        case .avx2:
            if tk_cpu_has_avxvnni() != 0, let table = tk_packed_avxvnni() { return (table, false) }
            if let table = tk_packed_avx2() { return (table, false) }
        case .avx512:
            if tk_cpu_has_avx512vnni() != 0, let table = tk_packed_avx512vnni() {
                return (table, tk_cpu_has_avx512bf16() != 0)
            }
            return packed(.avx2)
        }
        return (tk_packed_scalar(), false)
    }

    /// nil where this processor does not run the variant.
    public init?(_ variant: KernelVariant) {
        guard variant.isSupported else { return nil }
        switch variant {
        case .scalar: self = .scalar
        case .avx2:
            guard let table = tk_kernels_avx2() else { return nil }
            self.init(variant: variant, table: table)
        case .avx512:
            guard let table = tk_kernels_avx512() else { return nil }
            self.init(variant: variant, table: table)
        }
    }

    /// The widest table that this processor runs.
    public static var best: Kernels { Kernels(.best) ?? .scalar }
}

extension ElementType {
    var code: tk_element {
        switch self {
        case .f32: TK_F32
        case .f16: TK_F16
        case .bf16: TK_BF16
        }
    }
}
