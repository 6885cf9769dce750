"""The words of mails, in Indonesian and English."""

from string import Template

from nebengjek.contracts.rides import Ride
from nebengjek_plugins.notifications.contracts import Kind
from nebengjek_plugins.notifications.settings import Language

_TEXTS: dict[tuple[Kind, Language], tuple[str, str]] = {
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
}


def rendered(kind: Kind, language: Language, values: dict[str, str]) -> tuple[str, str]:
    """(subject, text). Raises KeyError for a value that the template has no use without."""
    subject, text = _TEXTS[kind, language]
    return Template(subject).substitute(values), Template(text).substitute(values)


def receipt_values(ride: Ride) -> dict[str, str]:
    """Every term of a ride's fare."""
    payment = ride.payment
    return {
        "ride_id": ride.ride_id,
        "distance": f"{ride.distance_km:.2f}",
        "total": _rupiah(ride.total_cost),
        "factor": f"{1.0 if ride.adjustment_factor is None else ride.adjustment_factor:g}",
        "adjusted": _rupiah(ride.adjusted_cost),
        "fee": _rupiah(ride.admin_fee),
        "payout": _rupiah(ride.driver_payout),
        "payment": "-" if payment is None else " ".join(filter(None, (payment.status, payment.method))),
    }


def _rupiah(amount: int | None) -> str:
    return "Rp " + f"{amount or 0:,}".replace(",", ".")
