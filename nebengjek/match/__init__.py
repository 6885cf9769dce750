"""Who is proposed to whom, and what they answer."""
