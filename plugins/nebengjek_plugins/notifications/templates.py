"""The words of mails and pushes, in Indonesian and English."""

from string import Template

from nebengjek.contracts.rides import Ride
from nebengjek_plugins.notifications.contracts import Language, MailKind, PushKind

TEXTS: dict[tuple[MailKind | PushKind, Language], tuple[str, str]] = {
    ("welcome", "id"): (
        "Selamat datang di NebengJek",
        "Halo $name,\n\nselamat datang di NebengJek. Alamat ini sekarang terhubung dengan akun Anda.\n",
    ),
    ("welcome", "en"): (
        "Welcome to NebengJek",
        "Hello $name,\n\nwelcome to NebengJek. This address now belongs to your account.\n",
    ),
    ("receipt", "id"): (
        "Kuitansi perjalanan $ride_id",
        "Halo $name,\n\nterima kasih telah memakai NebengJek.\n\n"
        "Jarak: $distance km\nTarif: $total\nFaktor penyesuaian: $factor\nHarga akhir: $adjusted\n"
        "Biaya admin (termasuk): $fee\nUntuk pengemudi: $payout\nPembayaran: $payment\n",
    ),
    ("receipt", "en"): (
        "Receipt of your ride $ride_id",
        "Hello $name,\n\nthank you for riding with NebengJek.\n\n"
        "Distance: $distance km\nFare: $total\nAdjustment factor: $factor\nFinal price: $adjusted\n"
        "Of which admin fee: $fee\nOf which for the driver: $payout\nPayment: $payment\n",
    ),
    ("offer_to_driver", "id"): ("Ada penumpang", "$name, $distance km dari Anda. Perkiraan tarif $fare."),
    ("offer_to_driver", "en"): ("A passenger", "$name, $distance km from you. Estimated fare $fare."),
    ("offer_to_passenger", "id"): ("Pengemudi ditemukan", "$name, $plate, sekitar $minutes menit."),
    ("offer_to_passenger", "en"): ("A driver was found", "$name, $plate, about $minutes minutes."),
    ("search_ended", "id"): ("Pencarian selesai", "Tidak ada pengemudi untuk Anda. Silakan coba lagi."),
    ("search_ended", "en"): ("The search is over", "No driver was found for you. Please try again."),
    ("driver_on_the_way", "id"): ("Pengemudi sedang menuju Anda", "Silakan tunggu di titik jemput."),
    ("driver_on_the_way", "en"): ("Your driver is on the way", "Please wait where you are to be picked up."),
    ("ride_cancelled", "id"): ("Perjalanan dibatalkan", "Perjalanan Anda dibatalkan."),
    ("ride_cancelled", "en"): ("The ride was cancelled", "Your ride was cancelled."),
    ("payment_due", "id"): ("Anda telah tiba", "Silakan bayar $amount."),
    ("payment_due", "en"): ("You have arrived", "Please pay $amount."),
    ("payment_refused", "id"): ("Pembayaran ditolak", "Pembayaran $amount ditolak. Silakan coba lagi."),
    ("payment_refused", "en"): ("The payment was refused", "The payment of $amount was refused. Please try again."),
    ("payment_overdue", "id"): ("Pembayaran terlambat", "$amount belum dibayar."),
    ("payment_overdue", "en"): ("A payment is overdue", "$amount has not been paid."),
}
"""Subject and text of mails, title and body of pushes."""


def rendered(kind: MailKind | PushKind, language: Language, values: dict[str, str]) -> tuple[str, str]:
    """(subject, text). Raises KeyError for a value that the template has no use without."""
    subject, text = TEXTS[kind, language]
    return Template(subject).substitute(values), Template(text).substitute(values)


def receipt_values(ride: Ride) -> dict[str, str]:
    """Every term of a ride's fare."""
    payment = ride.payment
    return {
        "ride_id": ride.ride_id,
        "distance": f"{ride.distance_km:.2f}",
        "total": rupiah(ride.total_cost),
        "factor": f"{1.0 if ride.adjustment_factor is None else ride.adjustment_factor:g}",
        "adjusted": rupiah(ride.adjusted_cost),
        "fee": rupiah(ride.admin_fee),
        "payout": rupiah(ride.driver_payout),
        "payment": "-" if payment is None else " ".join(filter(None, (payment.status, payment.method))),
    }


def rupiah(amount: int | None) -> str:
    return "Rp " + f"{amount or 0:,}".replace(",", ".")
